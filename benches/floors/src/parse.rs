//! What comes on a stream: an HTTP/1.1 head, mostly chunks, and events in them. Written for the benchmark, and knows nothing of the crate.
//!
//! An event of the benchmark is named `tick`, and its data is as long as [`DATA`]: a sequence number, the time at which it was
//! scheduled, a key, and filling. What a server adds of its own, such as `hub.hello` and comments, is no delivery.

/// The length of the data of an event.
pub const DATA: usize = 100;
/// Where the key is in it.
pub const KEY: std::ops::Range<usize> = 34..42;
/// The rest of the data.
const FILLING: &[u8; DATA - KEY.end] = b" The quick brown fox jumps over the lazy dog, as ever, and";

/// What an event of the benchmark carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Counts up by one for each connection, so that loss, duplicates and disorder are seen.
    pub sequence: u64,
    /// When it was due, in nanoseconds of the load generator's clock.
    pub scheduled: u64,
    /// For `latest_per_key`.
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

/// What a parser has found.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// The head of a `200`.
    Head,
    Event(Stamp),
    /// The id of the event that follows, or that was last.
    Id(&'a [u8]),
}

/// Why a stream is not one.
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
    /// Of the hub, and nothing to worry about.
    Quiet,
}

/// Of one connection.
#[derive(Debug)]
pub struct Parser {
    place: Place,
    /// Of the chunk that is being read.
    left: usize,
    /// The beginning of what has not come completely: of the head, of a size or of a line.
    carried: Vec<u8>,
    name: Name,
    has_data: bool,
    stamp: Option<Stamp>,
}

impl Parser {
    pub fn new() -> Self {
        Self { place: Place::Head, left: 0, carried: Vec::new(), name: Name::None, has_data: false, stamp: None }
    }

    /// Takes what was read.
    pub fn feed(&mut self, mut input: &[u8], found: &mut impl FnMut(Found<'_>)) -> Result<(), Problem> {
        while !input.is_empty() {
            match self.place {
                Place::Head => input = self.head(input, found)?,
                Place::Size => {
                    let Some((line, rest)) = take_line(&mut self.carried, input) else { break };
                    let size = line.as_slice().strip_suffix(b"\r").and_then(hex);
                    self.carried = line.recycle();
                    self.left = size.ok_or("a chunk without a size")? as usize;
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
                        // A size follows; what is carried of a line stays for the next chunk.
                        self.place = Place::Size;
                        if !self.carried.is_empty() {
                            return Err("an event is cut by the end of a chunk".into());
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
        // Small from here on: thousands of these lie in memory.
        self.carried = Vec::new();
        // nchan sends no chunks: what follows is one that does not end.
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
                // A gap, a refusal, an end.
                other => return Err(format!("the event {}", String::from_utf8_lossy(other))),
            };
        } else if let Some(id) = line.strip_prefix(b"id: ") {
            found(Found::Id(id));
        } else if line.is_empty() {
            let (name, stamp) = (std::mem::replace(&mut self.name, Name::None), self.stamp.take());
            match (std::mem::take(&mut self.has_data), name, stamp) {
                (true, Name::Tick, Some(stamp)) => found(Found::Event(stamp)),
                (true, Name::Quiet, _) | (false, Name::None, _) => {}
                _ => return Err("an event that nobody has published".into()),
            }
        } else if !line.starts_with(b":") && !line.starts_with(b"retry: ") {
            return Err(format!("the line {}", String::from_utf8_lossy(line)));
        }
        Ok(())
    }
}

/// A line without its end: in what was read, or put together from what was carried.
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

    /// The room of what was carried, to be used again.
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

/// The next line and what follows it; or carries the beginning of one.
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

/// Whether a stream is understood wherever it is cut, and what is wrong in one is noticed.
pub fn check_itself() {
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
        assert!(parse(&bad, 10).is_err(), "{bad} is taken for good");
    }
}
