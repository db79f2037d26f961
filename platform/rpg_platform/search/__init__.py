"""The search decides which setting of the weights is tried next, and which settings are trained to the end."""
