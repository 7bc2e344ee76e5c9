"""Voices: what a reference clip becomes, how it is made, and how it is kept."""

from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.reference import MAX_REFERENCE_SECONDS, MIN_REFERENCE_SECONDS, check_reference
from chatterbox_vllm.voices.voice import Voice

__all__ = ["MAX_REFERENCE_SECONDS", "MIN_REFERENCE_SECONDS", "Voice", "VoiceEnroller", "check_reference"]
