"""Bundles: the folder that holds engines, weights, tokenizer and manifest. Reading one loads no backend."""

from nemodiff_trt.bundle.build_key import build_key as build_key
from nemodiff_trt.bundle.build_key import tool_versions as tool_versions
from nemodiff_trt.bundle.manifest import (
    AdapterFacts as AdapterFacts,
)
from nemodiff_trt.bundle.manifest import (
    Combine as Combine,
)
from nemodiff_trt.bundle.manifest import (
    Encoding as Encoding,
)
from nemodiff_trt.bundle.manifest import (
    FileEntry as FileEntry,
)
from nemodiff_trt.bundle.manifest import (
    Manifest as Manifest,
)
from nemodiff_trt.bundle.manifest import (
    WeightLayout as WeightLayout,
)
from nemodiff_trt.bundle.reader import Bundle as Bundle
from nemodiff_trt.bundle.role_engine import RoleEngine as RoleEngine
from nemodiff_trt.bundle.role_engine import StepProfile as StepProfile
from nemodiff_trt.bundle.weights import mapped_tensors as mapped_tensors
from nemodiff_trt.bundle.weights import source_tensors as source_tensors
from nemodiff_trt.bundle.weights import tensor_over as tensor_over
from nemodiff_trt.bundle.writer import BundleWriter as BundleWriter
from nemodiff_trt.bundle.writer import check_output as check_output
