"""Training: objectives, the pure step, and the loop around it."""
