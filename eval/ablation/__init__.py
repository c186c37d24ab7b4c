"""What each part of a configuration is worth: the same training without it, or with it, on the same seeds."""
