"""Do two predictors say the same? Lockstep over photos, identical pixels, and what counts as equal."""
