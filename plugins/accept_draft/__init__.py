from nemodiff_trt.plugins.accept_draft.reference import Accepted as Accepted
from nemodiff_trt.plugins.accept_draft.reference import accept_draft as accept_draft
from nemodiff_trt.plugins.accept_draft.reference import accept_draft_reference as accept_draft_reference
from nemodiff_trt.plugins.accept_draft.reference import emit_candidates as emit_candidates
