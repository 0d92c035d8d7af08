"""Operations with different implementations for CPUs, GPUs and TPUs, one file for each operation.

    operation            CPU                            CUDA                    others
    convolution          matrix product, or XLA's with  XLA's                   XLA's
                         gradients that are not fused
    depthwise            sum of shifted maps            XLA's                   XLA's
    grouped              dense convolutions of a few     XLA's                   XLA's
                         groups each
    max_pool             chain of maxima                XLA's                   XLA's
    average_pool         sums over axes                 XLA's                   XLA's
    attention            two matrix products            cuDNN's flash           two matrix products
                                                        attention, in half
                                                        precision

Each file begins with the operation, which takes the implementation of the platform that the program
is compiled for (`platforms.dependent`); the implementations follow. `remem_jax.platforms` has the
choices that are made per device, outside compiled programs.
"""
