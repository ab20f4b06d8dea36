"""Weights by address or by name on the Hugging Face hub, brought into the cache of torch or of the hub.

The file is read afterwards as any local one; nothing of it is executed here or there.
"""

from __future__ import annotations

import hashlib
import http.client
from pathlib import Path
from urllib.parse import unquote, urlsplit

import filelock
import torch

from .errors import InputError

__all__ = ["HUB_PREFIXES", "fetch_address", "fetch_hub"]

HUB_PREFIXES = ("hf-hub:", "hf_hub:")
"""What a name on the hub begins with; timm knows the same."""

# As timm and open_clip save them; safe formats first.
_HUB_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
_LOCAL = "Without a network, fetch the file elsewhere and give its path as model.weights"


def fetch_address(address: str) -> Path:
    """The file at a https:// or http:// address, in torch's cache; fetched once.

    Raises:
        InputError: no name of a file in the address, no such host, no such file, no network.
    """
    name = Path(unquote(urlsplit(address).path)).name
    if not name:
        raise InputError("the address does not end in the name of a file")
    # torch's cache goes by the file's name alone, and many are called model.pth.
    folder = Path(torch.hub.get_dir()) / "checkpoints" / hashlib.sha256(address.encode()).hexdigest()[:16]
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One process of a machine fetches, the others wait.
        with filelock.FileLock(folder / ".lock"):
            if not path.exists():
                torch.hub.download_url_to_file(address, str(path), progress=False)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"can't be fetched: {error}. {_LOCAL}") from error
    return path


def fetch_hub(name: str) -> Path:
    """The file of weights of a model on the hub, in the hub's cache.

    Args:
        name: OWNER/NAME, or OWNER/NAME@REVISION.

    Raises:
        InputError: no such model, no file of weights in it, no network and nothing in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InputError(f"{repository!r} is no name on the hub; it is OWNER/NAME, or OWNER/NAME@REVISION")
    reached = True
    for file in _HUB_FILES:
        try:
            # Once the hub can't be reached, look into the cache alone: each try would wait for the network anew.
            return Path(hf_hub_download(repository, file, revision=revision or None, local_files_only=not reached))
        except LocalEntryNotFoundError:
            reached = False
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InputError(f"can't be fetched from the hub: {error}. {_LOCAL}") from error
    if reached:
        raise InputError(f"{repository} has none of {', '.join(_HUB_FILES)}")
    raise InputError(f"the hub can't be reached, and {repository} is not in its cache. {_LOCAL}")
