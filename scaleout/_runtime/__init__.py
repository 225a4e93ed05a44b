"""The distributed runtime under the shims; private."""
