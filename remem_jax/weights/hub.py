"""Fetches the weights of teachers and students from the Hugging Face Hub, by huggingface_hub.

huggingface_hub keeps the files in its own cache, which all processes and programs of a machine
share. It locks a file while it downloads it, resumes after a broken connection, and gives the file
its name when it is complete. Its environment variables apply: HF_HOME (folder of the cache),
HF_TOKEN (for private repositories and those with restricted access), HF_ENDPOINT (a mirror) and
HF_HUB_OFFLINE (only the cache is used).

Errors name the setting that has the repository, `config.teacher.init` or `config.student.init`.
"""

import contextlib
import hashlib
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging

from remem_jax import display
from remem_jax.checks import SettingError
from remem_jax.weights import hub_description

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"  # Of transformers: how images become inputs.
CARD = "README.md"
PREFIXES = ("hf-hub:", "hf_hub:")  # timm's; either may precede a name.
_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Files with the weights of repositories that lack `WEIGHTS`, and what to take instead.
_INSTEAD = {
    f"{WEIGHTS}.index.json": "its weights are in several files: join them in one .safetensors file",
    "open_clip_model.safetensors": "which has OpenCLIP's names: take the image tower that timm has "
    "under its own, such as timm/vit_base_patch16_clip_224.laion2b",
}
OTHERS = (".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx")
_MIB = 2**20
_TOKEN = "give a token that may read it, in HF_TOKEN or by `hf auth login`"


class Name(NamedTuple):
    """A name on the Hub.

    Attributes:
        repository: OWNER/NAME.
        revision: A branch, a tag or a commit; "" for the default branch.
    """

    repository: str
    revision: str = ""

    def __str__(self) -> str:
        """Returns the text that `parse` reads."""
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


class Fetched(NamedTuple):
    """The files of a repository, in the cache.

    Attributes:
        weights: Path of the weights.
        config: Contents of config.json; {} if there is none, or it is damaged.
        commit: Hash of the repository's commit.
        preprocessor: Contents of preprocessor_config.json, for repositories of transformers; {}
            for others.
        card: Metadata of its model card, such as `license`; {} if there are none, or they cannot be
            read.
    """

    weights: pathlib.Path
    config: Mapping[str, Any]
    commit: str
    preprocessor: Mapping[str, Any] = {}
    card: Mapping[str, Any] = {}


def parse(init: str) -> Name | None:
    """Parses OWNER/NAME or OWNER/NAME@REVISION, perhaps after "hf-hub:"; None for another text."""
    start = next((prefix for prefix in PREFIXES if init.startswith(prefix)), "")
    match = _NAME.fullmatch(init.removeprefix(start))
    return Name(match["repository"], match["revision"] or "") if match else None


def fetch(name: Name, *, setting: str) -> Fetched:
    """Returns the weights of a repository and its description; downloads what the cache lacks.

    Args:
        name: The repository.
        setting: The setting that names it, for messages.

    Raises:
        SettingError: If there is no such repository, revision or file, access is denied, a file is
            damaged, or the Hub cannot be reached and the cache lacks the files.
    """
    weights = _download(name, WEIGHTS, setting)
    if weights is None:
        raise SettingError(
            f"{name} has no {WEIGHTS} on the Hub{_other_formats(name)}: set {setting} to "
            f"another repository, or to the path of a .safetensors file."
        )
    commit = _commit_of(weights)
    # All files are of one commit, even if the branch moves in between.
    fixed = Name(name.repository, commit)
    config = hub_description.read_json(_download(fixed, CONFIG, setting))
    of_transformers = "model_type" in config
    preprocessor = _download(fixed, PREPROCESSOR, setting) if of_transformers else None
    card = None
    with contextlib.suppress(SettingError):  # It only states the licence.
        card = _download(fixed, CARD, setting)
    _require_intact(weights, name)
    logging.info("The weights of %s are those of commit %s on the Hub: %s.", name, commit, weights)
    preprocessing = hub_description.read_json(preprocessor)
    return Fetched(weights, config, commit, preprocessing, hub_description.read_card(card))


def is_cached(name: Name) -> bool:
    """Returns whether the cache has the weights of a repository."""
    import huggingface_hub

    revision = name.revision or None
    path = huggingface_hub.try_to_load_from_cache(name.repository, WEIGHTS, revision=revision)
    return isinstance(path, str)


def _download(name: Name, file: str, setting: str) -> pathlib.Path | None:
    """Returns the path of a file in the cache; None if the repository lacks it."""
    import huggingface_hub  # Imported here because it is not always needed.
    from huggingface_hub import errors

    with _explained(name, setting):
        try:
            path = huggingface_hub.hf_hub_download(
                name.repository, file, revision=name.revision or None, tqdm_class=_make_bar(name)
            )
        except errors.RemoteEntryNotFoundError:
            return None
        except errors.LocalEntryNotFoundError:
            # Without a network, the cache knows whether the repository lacked the file.
            missing = huggingface_hub.try_to_load_from_cache(
                name.repository, file, revision=name.revision or None
            )
            if missing is huggingface_hub._CACHED_NO_EXIST:
                return None
            raise
    return pathlib.Path(path)


def _make_bar(name: Name) -> type:
    """Makes the class of huggingface_hub's progress bars, which then report to the display."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": False, "gui": True})
            size = math.ceil((self.total or 0) / _MIB) or None
            self._stage = display.stage(f"Download of {name}", size, int(self.n / _MIB), "MiB")

        def display(self, *arguments: Any, **options: Any) -> None:
            """Reports the bytes so far, where tqdm would write a bar."""
            self._stage.advance(math.ceil(self.n / _MIB))

        def close(self) -> None:
            self._stage.advance(math.ceil(self.n / _MIB))
            self._stage.close()
            super().close()

    return Bar


@contextlib.contextmanager
def _explained(name: Name, setting: str) -> Iterator[None]:
    """Turns errors of huggingface_hub into a `SettingError` that says what to do."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise SettingError(
            f"Access to {name} is restricted: ask for it at {endpoint}/{name.repository}, and "
            f"{_TOKEN}."
        ) from None
    except errors.RevisionNotFoundError:
        raise SettingError(
            f"{name.repository} has no branch, tag or commit {name.revision!r}: set {setting} to "
            "the repository alone, or to another revision."
        ) from None
    except errors.RepositoryNotFoundError:
        raise SettingError(
            f"There is no repository {name.repository} at {endpoint}, or it is private: correct "
            f"{setting}; if it is private, {_TOKEN}."
        ) from None
    except errors.EntryNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError):
            raise _refused(name, cause, setting) from None
        raise _unreachable(name, cause or error, setting) from None
    except errors.HfHubHTTPError as error:
        raise _refused(name, error, setting) from None
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise SettingError(
            f"Cannot download {name} from {endpoint} ({_one_line(error)}): start again, which "
            "downloads only what the cache lacks."
        ) from None


def _unreachable(name: Name, error: BaseException, setting: str) -> SettingError:
    """Returns the error for files that are not in the cache, without a connection."""
    from huggingface_hub import constants

    remedy = (
        f"run `hf download {name.repository} {WEIGHTS} {CONFIG} {PREPROCESSOR} {CARD}` where there "
        f"is a network and copy its cache, or set {setting} to the path of a file"
    )
    if constants.is_offline_mode():
        return SettingError(
            f"HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} lacks files of {name}: "
            f"unset it; or {remedy}."
        )
    return SettingError(
        f"Cannot reach {constants.ENDPOINT}, to download {name} for {setting} "
        f"({_one_line(error)}): set HF_ENDPOINT to a mirror; or {remedy}."
    )


def _refused(name: Name, error: Any, setting: str) -> SettingError:
    """Returns the error for an unexpected status of the Hub."""
    from huggingface_hub import constants

    status = error.response.status_code
    if status in (401, 403):
        return SettingError(
            f"{constants.ENDPOINT} does not accept the token for {name} (status {status}): "
            f"{_TOKEN}."
        )
    return SettingError(
        f"{constants.ENDPOINT} answered with status {status} for {name}: start again later, or set "
        f"{setting} to the path of a file."
    )


def _other_formats(name: Name) -> str:
    """Returns ", only ..." for a repository whose weights are in a format that we do not read."""
    import huggingface_hub

    with contextlib.suppress(OSError, ValueError):  # Its files are only mentioned.
        listed = huggingface_hub.list_repo_files(name.repository, revision=name.revision or None)
        for file, instead in _INSTEAD.items():
            if file in listed:
                return f", only {file}: {instead}. Or"
        others = [file for file in listed if file.endswith(OTHERS)]
        if others:
            return f", only {', '.join(others[:3])}, which is a pickle or of another framework"
    return ""


def _commit_of(weights: pathlib.Path) -> str:
    """Returns the commit of a file in the cache, whose folder has its name."""
    return weights.parent.name


def _require_intact(weights: pathlib.Path, name: Name) -> None:
    """Raises if a file differs from its SHA-256, which large files have as name in the cache."""
    blob = weights.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    with blob.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != blob.name:
        raise SettingError(
            f"{blob}, the weights of {name}, is damaged: its SHA-256 is {actual}. Remove it, and "
            "it is downloaded again."
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
