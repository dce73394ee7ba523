"""MLA prefill attention kernels, sparse (DeepSeek Sparse Attention) and dense, for CUDA and the CPU.

Drop-in for FlashMLA's prefill calls: code written for them runs after ``import flash_dsa as flash_mla``.
"""

from flash_dsa.interface import (
    _flash_attn_varlen_forward,
    compiled_targets,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
    target_of,
)
from flash_dsa.library import __version__

__all__ = [
    "__version__",
    "_flash_attn_varlen_forward",
    "compiled_targets",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_mla_metadata",
    "target_of",
]
