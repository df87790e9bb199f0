"""The decoder in C++ for CPUs: a whole step over all layers in one call, compiled on first use.

`decoder.cpp` and its headers are compiled by the machine's own C++ compiler, as torch's Inductor does,
and kept in the user's cache folder (`build`). `decoder` hands them tensors, whose storage they read in
place. Where no compiler is, `build.load` says so and the eager model serves.

The files, from the ground up: `vec.h` vectors of floats, `pool.h` threads and barriers, `acts.h`
activations in their forms, `gemm_float.h`, `gemm_bf16.h` and `gemm_int8.h` matrix products, `attention.h`,
`decoder.h/.cpp` the step, `exports.h` what Python calls.
"""

from muomni.ops.native.build import Library, Unavailable, load
from muomni.ops.native.decoder import Decoder, DecoderWeights, LayerWeights, Matrix

__all__ = ["Decoder", "DecoderWeights", "LayerWeights", "Library", "Matrix", "Unavailable", "load"]
