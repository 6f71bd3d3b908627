"""Train on Ray. Ray is imported only here and in launch/jobs."""

import sys

# Ray imports an installed torch_npu, and fails where CANN's libraries are missing: hide torch_npu
# until raycnn.runtime.device.load_npu.
sys.modules.setdefault("torch_npu", None)
