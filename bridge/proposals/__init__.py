"""From clue maps to proposals: peaks, prompts, SAM's masks, their boxes."""
