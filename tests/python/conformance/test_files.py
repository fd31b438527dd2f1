"""Files and uploads."""
import hashlib

import openai
import pytest

from conftest import refused


def test_a_file_is_kept_listed_read_and_deleted(client, rows):
    file = client.files.create(file=rows.open("rb"), purpose="fine-tune",
                               expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.object == "file" and file.purpose == "fine-tune" and file.filename == rows.name, file
    assert file.bytes == rows.stat().st_size and file.status == "processed", file
    assert file.expires_at == file.created_at + 3600, file
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == rows.read_bytes()
    assert file.id in [f.id for f in client.files.list(purpose="fine-tune", order="asc", limit=100)]
    gone = client.files.delete(file.id)
    assert gone.deleted and gone.id == file.id and gone.object == "file", gone
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_list_is_paged_without_a_gap(client, rows):
    made = [client.files.create(file=(f"page-{n}.jsonl", rows.read_bytes()), purpose="fine-tune").id for n in range(5)]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        ids = [f.id for f in client.files.list(limit=2, order=order)]
        assert [i for i in ids if i in made] == expected, order
        assert len(ids) == len(set(ids))
    for file_id in made:
        client.files.delete(file_id)


def test_what_is_no_dataset_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("bad.jsonl", b'{"messages": [}\n'), purpose="fine-tune")
    assert caught.value.code == "invalid_file_format" and "line 1" in caught.value.message
    refused(openai.BadRequestError, "purpose",
            lambda: client.files.create(file=("a.jsonl", b"{}"), purpose="nonsense"))


def test_an_upload_comes_in_parts(client, rows):
    content = rows.read_bytes()
    upload = client.uploads.create(bytes=len(content), filename="parts.jsonl", mime_type="application/jsonl",
                                   purpose="fine-tune")
    assert upload.object == "upload" and upload.status == "pending" and upload.expires_at > upload.created_at, upload
    half = len(content) // 2
    # Parts may be uploaded in any order; the final call states the order.
    last = client.uploads.parts.create(upload.id, data=content[half:])
    first = client.uploads.parts.create(upload.id, data=content[:half])
    assert first.object == "upload.part" and first.upload_id == upload.id, first
    done = client.uploads.complete(upload.id, part_ids=[first.id, last.id], md5=hashlib.md5(content).hexdigest())
    assert done.status == "completed" and done.file and done.file.bytes == len(content), done
    assert client.files.content(done.file.id).read() == content
    client.files.delete(done.file.id)


def test_an_upload_that_is_not_whole_is_refused(client, rows):
    content = rows.read_bytes()
    make = dict(bytes=len(content), filename="parts.jsonl", mime_type="application/jsonl", purpose="fine-tune")
    upload = client.uploads.create(**make)
    part = client.uploads.parts.create(upload.id, data=content)
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[part.id], md5="0" * 32)
    cancelled = client.uploads.cancel(upload.id)
    assert cancelled.status == "cancelled", cancelled
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(upload.id, data=content)
