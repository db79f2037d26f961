"""Exports a policy as TorchScript, ONNX or an MLflow model, and registers it in MLflow's model registry."""
