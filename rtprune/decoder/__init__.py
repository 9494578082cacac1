"""The decoder stage: prompt, engines, and what turns token ids into text."""
