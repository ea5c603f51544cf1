"""An OpenAI-compatible server over a pipeline: protocol, media, scheduler, metrics, page. Needs no torch."""
