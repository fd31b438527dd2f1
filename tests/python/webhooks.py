"""Verifies deliveries with the official libraries: `standardwebhooks`, and the webhooks of `openai`.

Usage: webhooks.py DELIVERIES.json.  The file has a list of {"secret", "headers", "body", "valid"}; both libraries
verify each, and must refuse one that is not valid.
"""
import json
import sys

import openai
from openai import OpenAI
from standardwebhooks import Webhook, WebhookVerificationError

client = OpenAI(api_key="none")
deliveries = json.load(open(sys.argv[1]))
assert deliveries, "nothing to verify"
typed = set()
for delivery in deliveries:
    secret, headers, body = delivery["secret"], delivery["headers"], delivery["body"]
    if delivery["valid"]:
        event = Webhook(secret).verify(body, headers)
        assert event["object"] == "event" and event["id"] == headers["webhook-id"], event
        unwrapped = client.webhooks.unwrap(body, headers, secret=secret)
        assert (unwrapped.id, unwrapped.type) == (event["id"], event["type"]), unwrapped
        assert unwrapped.data.id == event["data"]["id"] and unwrapped.created_at == event["created_at"], unwrapped
        typed.add(type(unwrapped).__name__)
    else:
        for refuses, error in ((lambda: Webhook(secret).verify(body, headers), WebhookVerificationError),
                               (lambda: client.webhooks.unwrap(body, headers, secret=secret),
                                openai.InvalidWebhookSignatureError)):
            try:
                refuses()
            except error:
                continue
            raise AssertionError(f"a false signature was taken: {delivery}")
assert "FineTuningJobSucceededWebhookEvent" in typed, typed
print("verified", len(deliveries), "deliveries:", ", ".join(sorted(typed)))
