"""What this device should run, and the way there: download, verify, warm, probation, healthy, or back."""
