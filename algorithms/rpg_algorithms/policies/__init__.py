"""A policy and its file: the network, its numpy twin for acting, the comparison of two policies, the bundle on disk."""
