"""The mathematics of soft and residual policy gradient: pure functions of tensors that need torch alone."""
