"""The kernels' sources: C++, CUDA and Triton, one file per op and backend, free of torch's headers."""
