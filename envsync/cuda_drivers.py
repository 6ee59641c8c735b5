"""Which drivers CUDA needs: NVIDIA's own numbers for Linux, and nothing else.

Source: NVIDIA's "CUDA Toolkit Release Notes" (docs.nvidia.com/cuda/cuda-toolkit-release-notes), release 13.2,
section "CUDA Driver": the tables of minor version compatibility and of "CUDA Toolkit and Corresponding Driver
Versions". The full numbers of the least drivers of 11 and 12 are those of the same table in the release notes
of 11.8 and 12.8. A later release adds lines at the top.
"""

from __future__ import annotations

__all__ = ["LEAST", "MADE_FOR"]

LEAST: tuple[tuple[int, str], ...] = (
    (13, "580"),
    (12, "525.60.13"),
    (11, "450.80.02"),
)
"""The least driver for any release of a major version: CUDA's minor version compatibility, from 11 on."""

MADE_FOR: tuple[tuple[tuple[int, int], str], ...] = (
    ((13, 2), "595.45.04"),
    ((13, 1), "590.44.01"),
    ((13, 0), "580.65.06"),
    ((12, 9), "575.51.03"),
    ((12, 8), "570.26"),
    ((12, 6), "560.28.03"),
    ((12, 5), "555.42.02"),
    ((12, 4), "550.54.14"),
    ((12, 3), "545.23.06"),
    ((12, 2), "535.54.03"),
    ((12, 1), "530.30.02"),
    ((12, 0), "525.60.13"),
    ((11, 8), "520.61.05"),
    ((11, 7), "515.43.04"),
    ((11, 6), "510.39.01"),
    ((11, 5), "495.29.05"),
    ((11, 4), "470.42.01"),
    ((11, 3), "465.19.01"),
    ((11, 2), "460.27.03"),
    ((11, 1), "455.23"),
    ((11, 0), "450.36.06"),
    ((10, 2), "440.33"),
    ((10, 1), "418.39"),
    ((10, 0), "410.48"),
    ((9, 2), "396.26"),
    ((9, 1), "390.46"),
    ((9, 0), "384.81"),
    ((8, 0), "375.26"),
)
"""The driver that the first release of each toolkit came with: from it on nothing of that CUDA is missing."""
