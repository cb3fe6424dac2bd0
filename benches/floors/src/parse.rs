//! A parser for the bytes of a stream: an HTTP/1.1 head, chunks, and events in them. It is
//! independent of the crate.
//!
//! The events of the benchmark have the name `tick` and [`DATA`] bytes of data: a sequence number,
//! the time at which the event was scheduled, a key, and filling. Other events and comments of a
//! server, such as `hub.hello`, are not counted as deliveries.

/// The length of the data of an event.
pub const DATA: usize = 100;
/// The place of the key in the data.
pub const KEY: std::ops::Range<usize> = 34..42;
/// The data after the key.
const FILLING: &[u8; DATA - KEY.end] = b" The quick brown fox jumps over the lazy dog, as ever, and";

/// The content of an event of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// A number that increases by one on each connection, so that loss, duplicates and disorder are
    /// found.
    pub sequence: u64,
    /// The time at which the event was due, in nanoseconds of the load generator's clock.
    pub scheduled: u64,
    /// The key, for `latest_per_key`.
    pub key: u64,
}

impl Stamp {
    pub fn write(self, out: &mut Vec<u8>) {
        for (number, digits) in [(self.sequence, 16), (self.scheduled, 16), (self.key, KEY.len())] {
            for place in (0..digits).rev() {
                out.push(b"0123456789abcdef"[(number >> (4 * place)) as usize & 15]);
            }
            if digits == 16 {
                out.push(b' ');
            }
        }
        out.extend_from_slice(FILLING);
    }

    fn read(data: &[u8]) -> Option<Self> {
        if data.len() != DATA || &data[KEY.end..] != FILLING || data[16] != b' ' || data[33] != b' ' {
            return None;
        }
        Some(Self { sequence: hex(&data[..16])?, scheduled: hex(&data[17..33])?, key: hex(&data[KEY])? })
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    let mut number = 0;
    for digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        number = number << 4 | u64::from(value);
    }
    (!digits.is_empty()).then_some(number)
}

/// A part of the stream that the parser has read.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// The head of a response with status 200.
    Head,
    Event(Stamp),
    /// The id of the current event.
    Id(&'a [u8]),
}

/// The reason why the bytes are not a valid stream of the benchmark.
pub type Problem = String;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Head,
    /// The line with the size of a chunk.
    Size,
    Inside,
    /// The line break after a chunk.
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    None,
    Tick,
    /// `hub.hello` or `hub.live`, which are expected.
    Quiet,
}

/// The parser of one connection.
#[derive(Debug)]
pub struct Parser {
    place: Place,
    /// The remaining bytes of the current chunk.
    left: usize,
    /// The beginning of a head, a chunk size or a line that is not complete.
    carried: Vec<u8>,
    name: Name,
    has_data: bool,
    stamp: Option<Stamp>,
}

impl Parser {
    pub fn new() -> Self {
        Self { place: Place::Head, left: 0, carried: Vec::new(), name: Name::None, has_data: false, stamp: None }
    }

    /// Parses the next bytes of the connection.
    pub fn feed(&mut self, mut input: &[u8], found: &mut impl FnMut(Found<'_>)) -> Result<(), Problem> {
        while !input.is_empty() {
            match self.place {
                Place::Head => input = self.head(input, found)?,
                Place::Size => {
                    let Some((line, rest)) = take_line(&mut self.carried, input) else { break };
                    let size = line.as_slice().strip_suffix(b"\r").and_then(hex);
                    self.carried = line.recycle();
                    self.left = size.ok_or("a chunk has no size")? as usize;
                    if self.left == 0 {
                        return Err("the stream has ended".into());
                    }
                    (self.place, input) = (Place::Inside, rest);
                }
                Place::Inside => {
                    let (inside, rest) = input.split_at(self.left.min(input.len()));
                    self.left -= inside.len();
                    self.lines(inside, found)?;
                    if self.left == 0 {
                        (self.place, self.left) = (Place::After, 2);
                    }
                    input = rest;
                }
                Place::After => {
                    let (end, rest) = input.split_at(self.left.min(input.len()));
                    if end != &b"\r\n"[2 - self.left..][..end.len()] {
                        return Err("a chunk is longer than its size".into());
                    }
                    self.left -= end.len();
                    if self.left == 0 {
                        self.place = Place::Size;
                        if !self.carried.is_empty() {
                            return Err("a chunk ends within a line".into());
                        }
                    }
                    input = rest;
                }
            }
        }
        Ok(())
    }

    fn head<'a>(&mut self, input: &'a [u8], found: &mut impl FnMut(Found<'_>)) -> Result<&'a [u8], Problem> {
        let before = self.carried.len();
        self.carried.extend_from_slice(input);
        let Some(end) = memchr::memmem::find(&self.carried, b"\r\n\r\n") else { return Ok(&[]) };
        let head = String::from_utf8_lossy(&self.carried[..end]).to_ascii_lowercase();
        if !head.starts_with("http/1.1 200 ") {
            return Err(format!("not a stream: {}", head.lines().next().unwrap_or_default()));
        }
        if !head.contains("text/event-stream") {
            return Err(format!("not an event stream: {head}"));
        }
        // Frees the memory of the head, since there are thousands of parsers.
        self.carried = Vec::new();
        // nchan sends no chunks. Its whole body is parsed as one endless chunk.
        (self.place, self.left) =
            if head.contains("transfer-encoding: chunked") { (Place::Size, 0) } else { (Place::Inside, usize::MAX) };
        found(Found::Head);
        Ok(&input[end + 4 - before..])
    }

    fn lines(&mut self, mut inside: &[u8], found: &mut impl FnMut(Found<'_>)) -> Result<(), Problem> {
        while !inside.is_empty() {
            let Some((line, rest)) = take_line(&mut self.carried, inside) else { break };
            self.line(line.as_slice(), found)?;
            self.carried = line.recycle();
            inside = rest;
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], found: &mut impl FnMut(Found<'_>)) -> Result<(), Problem> {
        if let Some(data) = line.strip_prefix(b"data: ") {
            if std::mem::replace(&mut self.has_data, true) {
                return Err("an event has a second line of data".into());
            }
            self.stamp = Stamp::read(data);
        } else if let Some(name) = line.strip_prefix(b"event: ") {
            self.name = match name {
                b"tick" => Name::Tick,
                b"hub.hello" | b"hub.live" => Name::Quiet,
                // For example `hub.gap`, `hub.refused` or `hub.bye`.
                other => return Err(format!("unexpected event {}", String::from_utf8_lossy(other))),
            };
        } else if let Some(id) = line.strip_prefix(b"id: ") {
            found(Found::Id(id));
        } else if line.is_empty() {
            let (name, stamp) = (std::mem::replace(&mut self.name, Name::None), self.stamp.take());
            match (std::mem::take(&mut self.has_data), name, stamp) {
                (true, Name::Tick, Some(stamp)) => found(Found::Event(stamp)),
                (true, Name::Quiet, _) | (false, Name::None, _) => {}
                _ => return Err("an event was not published by the benchmark".into()),
            }
        } else if !line.starts_with(b":") && !line.starts_with(b"retry: ") {
            return Err(format!("unexpected line {}", String::from_utf8_lossy(line)));
        }
        Ok(())
    }
}

/// A line without its end, from the input alone or joined with the carried beginning.
enum Line<'a> {
    Read(&'a [u8]),
    Joined(Vec<u8>),
}

impl Line<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Read(line) => line,
            Self::Joined(line) => line,
        }
    }

    /// Returns the buffer of a joined line, so that it is used again.
    fn recycle(self) -> Vec<u8> {
        match self {
            Self::Read(_) => Vec::new(),
            Self::Joined(mut line) => {
                line.clear();
                line
            }
        }
    }
}

/// Returns the next line and the rest of the input. Carries an incomplete line, and returns `None`.
fn take_line<'a>(carried: &mut Vec<u8>, input: &'a [u8]) -> Option<(Line<'a>, &'a [u8])> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        carried.extend_from_slice(input);
        return None;
    };
    let (line, rest) = (&input[..end], &input[end + 1..]);
    if carried.is_empty() {
        return Some((Line::Read(line), rest));
    }
    carried.extend_from_slice(line);
    Some((Line::Joined(std::mem::take(carried)), rest))
}

/// Asserts that the parser reads a stream that is cut at any byte, and finds errors in bad streams.
pub fn self_check() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let event = |name: &str, sequence| {
        let mut data = Vec::new();
        Stamp { sequence, scheduled: 7, key: 3 }.write(&mut data);
        format!("event: {name}\ndata: {}\nid: 1.a.{sequence}\n\n", String::from_utf8(data).unwrap())
    };
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let parse = |stream: &str, cut: usize| {
        let (mut parser, mut seen) = (Parser::new(), Vec::new());
        let mut found = |found: Found<'_>| {
            if let Found::Event(stamp) = found {
                seen.push(stamp.sequence);
            }
        };
        parser.feed(&stream.as_bytes()[..cut], &mut found)?;
        parser.feed(&stream.as_bytes()[cut..], &mut found)?;
        Ok::<_, Problem>(seen)
    };
    let events = chunk("event: hub.hello\nretry: 2000\ndata: {}\n\n")
        + &chunk(&event("tick", 1))
        + &chunk(":\n")
        + &chunk(&(event("tick", 2) + &event("tick", 0xabc)));
    let good = HEAD.to_owned() + &events;
    for cut in 0..good.len() {
        assert_eq!(parse(&good, cut).as_deref(), Ok(&[1, 2, 0xabc][..]), "cut at {cut}");
    }
    for bad in [
        good.clone() + "0\r\n\r\n",
        good.clone() + &chunk("event: hub.gap\ndata: {}\n\n"),
        good.clone() + &chunk(&event("other", 3)),
        good.clone() + &chunk(&event("tick", 3).replace("quick", "slow")),
        good.replace("2\r\n:\n", "3\r\n:\n"),
        good.replace("200 OK", "403 Forbidden"),
    ] {
        assert!(parse(&bad, 10).is_err(), "no problem was found in {bad}");
    }
}
