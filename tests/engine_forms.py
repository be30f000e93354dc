"""The sets of instructions that the engine is tested with on this processor."""

from bedstone.measured import processor
from bedstone.nn.fast import kernels

# As `BEDSTONE_ENGINE` takes them: all there is, without the matrix unit, without AVX-512.
FORMS = ["avx2"]
if "avx512vnni" in processor()[1]:
    FORMS.insert(0, "avx512")
if set(kernels.TILES) <= set(kernels.instructions()):
    FORMS.insert(0, "auto")
