//! Between async sockets and blocking compressors: a bounded channel that reads and writes.
//!
//! Used from a blocking thread only; on an async thread they would panic, as tokio's blocking
//! channel calls do.

use std::io::{self, Read, Write};

use tokio::sync::mpsc::{Receiver, Sender};

/// How many pieces may wait between the two sides.
pub const DEPTH: usize = 8;

/// Size of the pieces that a [`PipeWriter`] sends, in bytes.
const PIECE_LEN: usize = 256 << 10;

/// Reads what arrives on a channel. The end of the channel is the end of the data; an error that
/// was sent is the error of the next read.
#[derive(Debug)]
pub struct PipeReader<T> {
    pieces: Receiver<io::Result<T>>,
    current: Option<T>,
    at: usize,
    taken: u64,
}

impl<T: AsRef<[u8]>> PipeReader<T> {
    /// Reads from `pieces`.
    #[must_use]
    pub fn new(pieces: Receiver<io::Result<T>>) -> Self {
        Self { pieces, current: None, at: 0, taken: 0 }
    }

    /// How many bytes were read.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }
}

impl<T: AsRef<[u8]>> Read for PipeReader<T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(piece) = &self.current {
                let rest = &piece.as_ref()[self.at..];
                if !rest.is_empty() {
                    let len = rest.len().min(out.len());
                    out[..len].copy_from_slice(&rest[..len]);
                    self.at += len;
                    self.taken += len as u64;
                    return Ok(len);
                }
            }
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => {
                    self.current = Some(piece?);
                    self.at = 0;
                }
            }
        }
    }
}

/// Sends what is written in pieces. Dropping it ends the data, so call `flush` first.
#[derive(Debug)]
pub struct PipeWriter {
    pieces: Sender<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
}

impl PipeWriter {
    /// Writes to `pieces`.
    #[must_use]
    pub fn new(pieces: Sender<io::Result<Vec<u8>>>) -> Self {
        Self { pieces, piece: Vec::with_capacity(PIECE_LEN) }
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(PIECE_LEN - self.piece.len());
        self.piece.extend_from_slice(&bytes[..len]);
        if self.piece.len() == PIECE_LEN {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_LEN));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the other side stopped reading");
        self.pieces.blocking_send(Ok(piece)).map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[test]
    fn what_is_written_is_read() {
        let (sender, receiver) = mpsc::channel(DEPTH);
        let content: Vec<u8> = (0..3 * PIECE_LEN + 17).map(|i| (i % 251) as u8).collect();
        let expected = content.clone();
        let writing = std::thread::spawn(move || {
            let mut writer = PipeWriter::new(sender);
            writer.write_all(&content).and_then(|()| writer.flush())
        });
        let mut reader = PipeReader::new(receiver);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("the writer sends no error");
        writing.join().expect("the writer does not panic").expect("the reader reads all");
        assert_eq!(read, expected);
        assert_eq!(reader.taken(), expected.len() as u64);
    }

    #[test]
    fn an_error_is_not_taken_for_the_end() {
        let (sender, receiver) = mpsc::channel::<io::Result<Vec<u8>>>(DEPTH);
        sender.blocking_send(Ok(vec![1])).expect("there is room");
        sender.blocking_send(Err(io::Error::other("cut"))).expect("there is room");
        let mut reader = PipeReader::new(receiver);
        let error = reader.read_to_end(&mut Vec::new()).expect_err("the connection was cut");
        assert_eq!(error.to_string(), "cut");
    }
}
