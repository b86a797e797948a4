"""The vendor's contract: what MX documents of Nexus. No I/O, no clock, no tables."""
