"""What every other room may use: errors, files, progress and the processes of one job."""
