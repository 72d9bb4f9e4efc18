"""Run exported models: verify them code by code and measure their latency."""
