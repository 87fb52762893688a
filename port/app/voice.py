"""The commands `voice add|list|show|remove|export|import`; `arguments.py` has their arguments."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

from ..config import CosyVoice3Config, read_settings
from ..cosyvoice3 import CosyVoice3
from ..files import community
from ..files.errors import Refused, printable
from ..files.hub import find_folder
from ..files.recording import check_recording
from ..files.strict import TOKENS_PER_SECOND
from ..files.voices import (
    SUFFIX,
    check_name,
    read_voice,
    remove_voice,
    save_voice,
    voice_file,
    voice_files,
    write_voice,
)


def add(options: argparse.Namespace) -> None:
    """Save the voice of a recording."""
    name = check_name(options.name)
    recording = check_recording(options.prompt_wav)
    voice = CosyVoice3.from_pretrained(options.model, options.revision, lazy=True)  # the language model is not read
    voice.add_zero_shot_spk(options.prompt_text, recording, name)
    made = replace(voice.frontend.spk2info[name], licence=options.licence)
    print(f"{name}: saved in {save_voice(cast(str, voice.folder), name, made, voice.model.config)}")


def list_(options: argparse.Namespace) -> None:
    """Print the names, one a line."""
    folder = find_folder(options.model, options.revision)
    read_settings(folder)  # refuses a folder without a model
    for name in voice_files(folder):
        print(name)


def show(options: argparse.Namespace) -> None:
    """Print what a voice contains."""
    folder = find_folder(options.model, options.revision)
    path = voice_file(folder, options.name)
    voice = read_voice(path, _config(folder))
    tokens = voice.flow_prompt_speech_token
    prompt = f"{tokens.shape[1] / TOKENS_PER_SECOND:.2f} s" if tokens is not None else "none, the speaker alone"
    print(f"name: {options.name}\nprompt: {prompt}\ntext: {_shown(voice.text)}\nlicence: {_shown(voice.licence)}")
    print(f"file: {path}")


def remove(options: argparse.Namespace) -> None:
    """Forget a voice."""
    path = remove_voice(find_folder(options.model, options.revision), options.name)
    print(f"{options.name}: removed {path}")


def export(options: argparse.Namespace) -> None:
    """Copy a voice to a file."""
    folder = find_folder(options.model, options.revision)
    config = _config(folder)
    write_voice(options.output, read_voice(voice_file(folder, options.name), config), config)
    print(f"{options.name}: written to {options.output}")


def import_(options: argparse.Namespace) -> None:
    """Import a voice from a file, under its own name or another; it never replaces an existing voice."""
    folder = find_folder(options.model, options.revision)
    config = _config(folder)
    voice = read_voice(options.file, config)
    name = check_name(options.name or options.file.name.removesuffix(SUFFIX))
    if name in voice_files(folder):
        raise Refused(f"voice {name!r:.80} is there already; give --name, or remove that one first")
    print(f"{name}: saved in {save_voice(folder, name, voice, config)}; licence: {_shown(voice.licence)}")


def _shown(note: str) -> str:
    return printable(note) or "not given"


def _config(folder: Path) -> CosyVoice3Config:
    settings = read_settings(folder)
    if community.recognises(settings):  # its sizes follow only from its arrays
        return community.load(folder, lazy=True, settings=settings)[0].config
    return CosyVoice3Config.from_dict(settings)


COMMANDS = {
    "voice_add": add,
    "voice_list": list_,
    "voice_show": show,
    "voice_remove": remove,
    "voice_export": export,
    "voice_import": import_,
}
