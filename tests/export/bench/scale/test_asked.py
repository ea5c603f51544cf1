"""The requests of the measurements."""

from collections import Counter

from rediprune.export.bench.scale.asked import bodies


def test_requests_are_seeded_and_popular_pictures_come_often() -> None:
    made = bodies("m", 300, 6, 8, 0.15)
    assert made == bodies("m", 300, 6, 8, 0.15) != bodies("m", 300, 6, 8, 0.15, seed=1)
    urls = Counter(body["messages"][0]["content"][0]["image_url"]["url"] for body in made)
    assert len(urls) == 6 and urls.most_common(1)[0][1] > 2 * min(urls.values())
    assert all(body["max_tokens"] == 8 and body["keep"] == 0.15 for body in made)
