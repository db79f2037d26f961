"""A policy on its way out: TorchScript, ONNX, an MLflow model, and a version in MLflow's registry."""
