"""Voices: what a reference clip becomes, how it is made, and how it is kept."""

from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.files import FileVoices
from chatterbox_vllm.voices.library import VoiceLibrary
from chatterbox_vllm.voices.reference import MAX_REFERENCE_SECONDS, MIN_REFERENCE_SECONDS, check_reference
from chatterbox_vllm.voices.voice import Voice, check_voice

__all__ = [
    "MAX_REFERENCE_SECONDS",
    "MIN_REFERENCE_SECONDS",
    "FileVoices",
    "Voice",
    "VoiceEnroller",
    "VoiceLibrary",
    "check_reference",
    "check_voice",
]
