"""The decoder stage: prompt, engines, and what turns token ids into text."""

from rtprune.decoder.service import DecoderService as DecoderService
from rtprune.decoder.service import GenerationRequest as GenerationRequest
from rtprune.decoder.service import Piece as Piece
from rtprune.decoder.service import open_service as open_service
