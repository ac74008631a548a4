"""What all other packages may use: errors, files, progress, and several processes on one job."""
