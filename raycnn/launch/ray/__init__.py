"""Ray. Here alone, and in launch/jobs, it is imported."""

import sys

# Ray imports torch_npu wherever it is installed, and fails with it where CANN's libraries are
# missing: it is to seem not installed until raycnn.runtime.device.load_npu.
sys.modules.setdefault("torch_npu", None)
