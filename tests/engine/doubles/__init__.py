"""Doubles of TensorRT and CUDA; see each file for what it claims, which is little."""
