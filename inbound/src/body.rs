//! Request bodies with a limit on the time that a slow sender may take.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Body, BodyDataStream, HttpBody};
use bytes::Bytes;
use futures::Stream;

use crate::min_rate::MinRate;

/// Returns the body, which fails when its sender has been too slow.
pub(crate) fn paced(body: Body, min_rate: MinRate) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::from_stream(Paced { pieces: body.into_data_stream(), min_rate })
}

struct Paced {
    pieces: BodyDataStream,
    min_rate: MinRate,
}

impl Stream for Paced {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        match Pin::new(&mut this.pieces).poll_next(cx) {
            Poll::Ready(next) => {
                this.min_rate.moved(next.as_ref().and_then(|next| next.as_ref().ok()).map_or(0, Bytes::len));
                Poll::Ready(next)
            }
            Poll::Pending => {
                ready!(this.min_rate.poll_too_slow(cx));
                let error = io::Error::new(io::ErrorKind::TimedOut, "the request body was sent too slowly");
                Poll::Ready(Some(Err(axum::Error::new(error))))
            }
        }
    }
}
