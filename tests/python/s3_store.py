"""An S3 service with quirks, in memory, path style, for tests. Signatures are not checked. Standard library only.

usage: s3_store.py [--refuse-checksums] [--slow SECONDS] [--unavailable-every N]

Prints its address once it listens. With --refuse-checksums, an upload with a checksum header or trailer gets 501
NotImplemented, as from several services when the SDKs began to send one by default. --slow delays each response, and
every N-th request gets 503 SlowDown. `POST /-/uploads/STATUS/CODE` makes all later uploads fail with that error, and
`POST /-/uploads/take` ends that. `GET /-/uploads` returns the number of uploads with a checksum.
"""

import argparse
import hashlib
import http.server
import itertools
import threading
import time
import urllib.parse
import uuid

OBJECTS, PARTS, BUCKETS, LOCK = {}, {}, set(), threading.Lock()
COUNT = itertools.count(1)
STATE = {"refusal": None, "checksums": 0}


def etag(body):
    return '"' + hashlib.md5(body).hexdigest() + '"'


class Store(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options = None

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", kind="application/xml", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code, text="refused"):
        self.answer(status, f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'.encode())

    def body(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return raw
        out = b""
        while raw:
            line, raw = raw.split(b"\r\n", 1)
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            out, raw = out + raw[:size], raw[size + 2 :]
        return out

    def place(self):
        url = urllib.parse.urlsplit(self.path)
        bucket, _, key = url.path.lstrip("/").partition("/")
        return bucket, urllib.parse.unquote(key), urllib.parse.parse_qs(url.query, keep_blank_values=True)

    def control(self):
        """Handles a request to the store's control path; returns whether it was one."""
        bucket, what, _ = self.place()
        if bucket != "-":
            return False
        self.body()
        if self.command == "POST":
            words = what.split("/")[1:]
            STATE["refusal"] = None if words == ["take"] else (int(words[0]), words[1])
        self.answer(200, str(STATE["checksums"]).encode(), "text/plain")
        return True

    def hindered(self):
        time.sleep(self.options.slow)
        every = self.options.unavailable_every
        if every and next(COUNT) % every == 0:
            self.body()
            self.error(503, "SlowDown", "Please reduce your request rate.")
            return True
        return False

    def refused(self):
        names = {name.lower() for name in self.headers.keys()}
        known = ("x-amz-sdk-checksum-algorithm", "x-amz-trailer", "x-amz-checksum-algorithm")
        if any(name.startswith("x-amz-checksum-crc") or name in known for name in names):
            STATE["checksums"] += 1
            if self.options.refuse_checksums:
                self.body()
                self.error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
                return True
        if STATE["refusal"]:
            self.body()
            self.error(*STATE["refusal"])
            return True
        return False

    def do_HEAD(self):
        if self.hindered():
            return
        bucket, key, _ = self.place()
        if not key:
            return self.answer(200 if bucket in BUCKETS else 404)
        found = OBJECTS.get((bucket, key))
        self.answer(404) if found is None else self.answer(200, length=len(found), ETag=etag(found))

    def do_GET(self):
        if self.control() or self.hindered():
            return
        bucket, key, query = self.place()
        if not key:
            return self.listing(bucket, query.get("prefix", [""])[0])
        found = OBJECTS.get((bucket, key))
        if found is None:
            return self.error(404, "NoSuchKey")
        ranged = self.headers.get("Range")
        if not ranged:
            return self.answer(200, found, "application/octet-stream", ETag=etag(found))
        first, _, last = ranged.split("=")[1].partition("-")
        first, last = int(first), min(int(last or len(found) - 1), len(found) - 1)
        if first >= len(found):
            return self.error(416, "InvalidRange")
        part = found[first : last + 1]
        where = f"bytes {first}-{last}/{len(found)}"
        self.answer(206, part, "application/octet-stream", ETag=etag(found), Content_Range=where)

    def listing(self, bucket, prefix):
        with LOCK:
            keys = sorted(key for place, key in OBJECTS if place == bucket and key.startswith(prefix))
        when = "<LastModified>2024-01-01T00:00:00.000Z</LastModified>"
        found = "".join(f"<Contents><Key>{key}</Key>{when}<Size>{len(OBJECTS[bucket, key])}</Size></Contents>" for key in keys)
        told = f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>"
        self.answer(200, f"{told}{found}</ListBucketResult>".encode())

    def do_PUT(self):
        if self.hindered():
            return
        bucket, key, query = self.place()
        if not key:
            self.body()
            BUCKETS.add(bucket)
            return self.answer(200)
        source = self.headers.get("x-amz-copy-source")
        if source:
            self.body()
            return self.copy(bucket, key, urllib.parse.unquote(source).lstrip("/"))
        if self.refused():
            return
        body = self.body()
        with LOCK:
            if "uploadId" in query:
                PARTS.setdefault(query["uploadId"][0], {})[int(query["partNumber"][0])] = body
            else:
                OBJECTS[bucket, key] = body
        self.answer(200, ETag=etag(body))

    def copy(self, bucket, key, source):
        from_bucket, _, from_key = source.partition("/")
        found = OBJECTS.get((from_bucket, from_key))
        if found is None:
            return self.error(404, "NoSuchKey")
        OBJECTS[bucket, key] = found
        when = "2024-01-01T00:00:00.000Z"
        told = f"<CopyObjectResult><ETag>{etag(found)}</ETag><LastModified>{when}</LastModified></CopyObjectResult>"
        self.answer(200, told.encode())

    def do_POST(self):
        if self.control() or self.hindered() or self.refused():
            return
        bucket, key, query = self.place()
        self.body()
        named = f"<Bucket>{bucket}</Bucket><Key>{key}</Key>"
        if "uploads" in query:
            made = uuid.uuid4().hex
            PARTS[made] = {}
            told = f"<InitiateMultipartUploadResult>{named}<UploadId>{made}</UploadId></InitiateMultipartUploadResult>"
            return self.answer(200, told.encode())
        parts = PARTS.pop(query["uploadId"][0], {})
        OBJECTS[bucket, key] = b"".join(parts[n] for n in sorted(parts))
        tag = etag(OBJECTS[bucket, key])
        told = f"<CompleteMultipartUploadResult>{named}<ETag>{tag}</ETag></CompleteMultipartUploadResult>"
        self.answer(200, told.encode())

    def do_DELETE(self):
        if self.hindered():
            return
        bucket, key, query = self.place()
        self.body()
        with LOCK:
            if "uploadId" in query:
                PARTS.pop(query["uploadId"][0], None)
            else:
                OBJECTS.pop((bucket, key), None)
        self.answer(204)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--refuse-checksums", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--unavailable-every", type=int, default=0)
    Store.options = parser.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
