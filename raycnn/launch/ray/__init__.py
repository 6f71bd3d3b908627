"""Training and searches on Ray. Ray is imported here and in launch/jobs alone."""

from raycnn.runtime import device

device.hide_npu()
