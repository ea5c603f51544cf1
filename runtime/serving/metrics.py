"""What Prometheus sees: vLLM's metric names under our prefix, and what pruning adds."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)


class Metrics:
    """One server's metrics, in a registry of their own; every metric has the label `model_name`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"rediprune:{name}", text, ["model_name"], registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rediprune:{name}", text, ["model_name", *labels], registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            full = f"rediprune:{name}"
            return Histogram(full, text, ["model_name", *labels], registry=self.registry, buckets=buckets)

        self.running = gauge("num_requests_running", "Requests that are prefilled or decoded.")
        self.waiting = gauge("num_requests_waiting", "Requests that wait for a slot.")
        self.cache_usage = gauge("kv_cache_usage_perc", "Share of the KV cache's positions in use, 0 to 1.")
        self.max_batch = gauge("max_batch_size", "Sequences that are decoded in one call at most; 1: one at a time.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens computed, kept visual tokens included.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.success = counter("request_success", "Requests that were answered.", "finished_reason")
        self.failure = counter("request_failure", "Requests that were refused or failed, by HTTP status.", "status")
        self.feature_queries = counter("mm_cache_queries", "Pictures looked up in the feature cache.")
        self.feature_hits = counter("mm_cache_hits", "Pictures whose features were there.")
        self.prefix_queries = counter("prefix_cache_queries", "Prompt tokens looked up in kept KV prefixes.")
        self.prefix_hits = counter("prefix_cache_hits", "Prompt tokens that a kept KV prefix held.")
        self.visual_tokens = counter("visual_tokens", "Visual tokens before pruning.")
        self.kept_tokens = counter("kept_tokens", "Visual tokens kept.")
        self.first_token = histogram("time_to_first_token_seconds", "From the request to its first token.", _SECONDS)
        self.inter_token = histogram("inter_token_latency_seconds", "Between two tokens of an answer.", _TOKEN_SECONDS)
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Decoding time of an answer per token.", _TOKEN_SECONDS
        )
        self.end_to_end = histogram("e2e_request_latency_seconds", "From the request to its end.", _SECONDS)
        self.queue_time = histogram("request_queue_time_seconds", "Waited for a slot.", _SECONDS)
        self.prefill_time = histogram("request_prefill_time_seconds", "From a slot to the first token.", _SECONDS)
        self.decode_time = histogram("request_decode_time_seconds", "From the first token to the last.", _SECONDS)
        self.inference_time = histogram("request_inference_time_seconds", "From a slot to the last token.", _SECONDS)
        self.request_prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.request_generation = histogram("request_generation_tokens", "Generated tokens of a request.", _TOKENS)
        self.request_max_tokens = histogram("request_params_max_tokens", "max_tokens of a request.", _TOKENS)
        self.stage_seconds = histogram("stage_seconds", "Time in a stage, per request.", _SECONDS, "stage")

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
