"""Values and functions to bytes and back."""
