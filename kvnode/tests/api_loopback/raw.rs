//! HTTP/2 by hand, because a proper client keeps the server's limits.

use std::io;

use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::Harness;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// RFC 9113, 6.5.2.
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// A frame, and whether it ends its stream.
pub struct Frame {
    pub kind: u8,
    pub ends: bool,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A connection whose client does what it likes.
pub struct RawClient {
    stream: TcpStream,
}

impl RawClient {
    pub async fn connect(harness: &Harness) -> Self {
        Self::try_connect(harness).await.expect("an open connection")
    }

    /// Fails when the server has closed it.
    pub async fn try_connect(harness: &Harness) -> io::Result<Self> {
        let mut stream = TcpStream::connect(harness.address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let mut client = Self { stream };
        client.frame(SETTINGS, 0, 0, &[]).await?;
        Ok(client)
    }

    /// Allows the server to send as much as it likes.
    pub async fn open_windows(&mut self) {
        let mut setting = SETTINGS_INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend_from_slice(&WINDOW_MAX.to_be_bytes());
        self.frame(SETTINGS, 0, 0, &setting).await.expect("an open connection");
        // What there is already counts.
        let more = WINDOW_MAX - 65_535;
        self.frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes()).await.expect("an open connection");
    }

    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).await
    }

    /// HEADERS of a gRPC request, as literals without an index; RFC 7541, 6.2.2.
    pub async fn try_open(&mut self, stream: u32, path: &str, timeout: Option<&str>) -> io::Result<()> {
        let mut headers = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        headers.extend(timeout.map(|timeout| ("grpc-timeout", timeout)));
        let mut block = Vec::new();
        for (name, value) in headers {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).expect("short"));
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.frame(HEADERS, END_HEADERS, stream, &block).await
    }

    pub async fn open(&mut self, stream: u32, path: &str) {
        self.try_open(stream, path, None).await.expect("an open connection");
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8]) {
        self.frame(DATA, 0, stream, bytes).await.expect("an open connection");
    }

    /// A whole request with one message.
    pub async fn ask(
        &mut self,
        stream: u32,
        path: &str,
        message: &impl Message,
        timeout: Option<&str>,
    ) -> io::Result<()> {
        self.try_open(stream, path, timeout).await?;
        let message = message.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(message.len()).expect("short").to_be_bytes());
        bytes.extend_from_slice(&message);
        self.frame(DATA, END_STREAM, stream, &bytes).await
    }

    pub async fn next_frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        // Bit 0 is END_STREAM in these two only.
        let ends = matches!(head[3], DATA | HEADERS) && head[4] & END_STREAM != 0;
        Ok(Frame { kind: head[3], ends, stream, payload })
    }

    /// Reads on until a frame of this kind comes.
    pub async fn frame_of_kind(&mut self, kind: u8) -> io::Result<Frame> {
        loop {
            let frame = self.next_frame().await?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// The next head of a reply.
    pub async fn headers(&mut self) -> io::Result<Frame> {
        self.frame_of_kind(HEADERS).await
    }

    /// The head of the reply on this stream.
    pub async fn headers_of(&mut self, stream: u32) -> Vec<u8> {
        loop {
            let frame = self.headers().await.expect("an open connection");
            if frame.stream == stream {
                return frame.payload;
            }
        }
    }
}
