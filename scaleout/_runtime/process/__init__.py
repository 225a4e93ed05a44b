"""The zygote and the workers it forks."""
