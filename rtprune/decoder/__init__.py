"""The decoder stage: prompt, engines, and what turns token ids into text."""

from rtprune.decoder.open import open_service as open_service
