from nemodiff_trt.plugins.accept_draft_sampled.reference import accept_draft_sampled as accept_draft_sampled
from nemodiff_trt.plugins.accept_draft_sampled.reference import (
    accept_draft_sampled_reference as accept_draft_sampled_reference,
)
