"""Write a model repository around a bundle."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from nemodiff_trt.atomic_folder import AtomicFolder, FolderKind
from nemodiff_trt.bundle import Bundle
from nemodiff_trt.bundle.reader import list_files
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.planner.latency_model import latency_file
from nemodiff_trt.runtime.triton_repository.config_pbtxt import config_pbtxt
from nemodiff_trt.runtime.triton_repository.settings import ServingSettings
from nemodiff_trt.runtime.triton_repository.variant import Variant
from nemodiff_trt.tokenizer import Tokenizer

VERSION = "1"
CONFIG_FILE = "config.pbtxt"
MODEL_FILE = "model.py"
BUNDLE_DIR = "bundle"
TOKENS_SUFFIX = "_tokens"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class RepositoryLayout:
    """What a repository holds.

    Attributes:
        models: settings by name of the model; `bundle` of each is replaced by where it lies.
        is_linked: refer to the bundle where it is, rather than copy it into each version folder.
    """

    models: dict[str, ServingSettings]
    is_linked: bool = False


def models_of(
    name: str, variants: tuple[Variant, ...], settings: ServingSettings, bundle: Bundle
) -> dict[str, ServingSettings]:
    """Settings by name of the model. Where both variants are served, that of token ids has a suffix.

    Raises:
        InvalidInputError: `name` is no name of a model.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError("name", name, "letters, digits, dots, dashes and underscores, a letter or digit first")
    models = {}
    for variant in variants:
        suffix = TOKENS_SUFFIX if variant is Variant.TOKENS and len(variants) > 1 else ""
        end_think = Tokenizer.from_dir(bundle.tokenizer_dir).end_think_token_id if variant is Variant.TOKENS else None
        models[name + suffix] = dataclasses.replace(settings, variant=variant, end_think_token_id=end_think)
    return models


def write_repository(bundle: Bundle, output: Path, layout: RepositoryLayout, force: bool = False) -> None:
    """Write the repository beside `output` and rename it.

    Args:
        bundle: what is served.
        output: folder of the repository.
        layout: models and their settings.
        force: replace a repository that this function wrote.

    Raises:
        InvalidInputError: `output` holds something else.
        BundleError: the bundle has no weights, or the disk refuses.
    """
    if not bundle.manifest.has_weights:
        raise BundleError(f"{bundle.path} has no weights: bind a checkpoint with `nemodiff bind` first")
    with AtomicFolder(output, force, _REPOSITORY) as folder:
        first: Path | None = None
        for name, settings in layout.models.items():
            version = folder.path / name / VERSION
            version.mkdir(parents=True)
            if layout.is_linked:
                placed = str(bundle.path.resolve())
            else:
                placed = BUNDLE_DIR
                _copy(first or bundle.path, version / BUNDLE_DIR, is_own=first is not None)
                first = first or version / BUNDLE_DIR
                _copy_step_times(bundle.path, version / BUNDLE_DIR)
            text = config_pbtxt(name, bundle.manifest, dataclasses.replace(settings, bundle=placed))
            (folder.path / name / CONFIG_FILE).write_text(text, encoding="utf-8")
            shutil.copyfile(Path(__file__).with_name("python_model.py"), version / MODEL_FILE)
        folder.rename()


def _copy(source: Path, target: Path, is_own: bool) -> None:
    """Copy a bundle. Files of a copy that is ours are shared with the next one, so that they exist once on disk and in memory.

    Raises:
        BundleError: the disk refuses.
    """
    try:
        for name in list_files(source):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            if is_own:
                os.link(source / name, target / name)
            else:
                shutil.copyfile(source / name, target / name)
    except OSError as error:
        raise BundleError(f"cannot copy {source} to {target}: {error.strerror}") from error


def _copy_step_times(source: Path, target: Path) -> None:
    """What `nemodiff calibrate` measured lies beside a bundle; mode `auto` needs it."""
    times = latency_file(source)
    if times.exists():
        shutil.copyfile(times, latency_file(target))


def _is_repository(path: Path) -> bool:
    """Whether every folder in `path` is a model of ours."""
    models = [model for model in path.iterdir() if model.is_dir()]
    marker = b"nemodiff_trt"
    return bool(models) and all(
        (model / VERSION / MODEL_FILE).is_file() and marker in (model / VERSION / MODEL_FILE).read_bytes() for model in models
    )


_REPOSITORY = FolderKind("model repository of ours", _is_repository, BundleError)
