"""Policies on their way out: a bundle as TorchScript, as ONNX, as an MLflow model, and in MLflow's registry.

    policy          what every format computes, and the check that it computes it
    torchscript     one file for torch, C++ included
    onnx_model      one file for any ONNX runtime
    mlflow_model    a folder for ``mlflow.pyfunc.load_model``
    files           a bundle → one or all of these
    registry        a bundle → a registered version with an alias

None of them needs this package where it runs, and none of them holds a pickle of ours.
"""
