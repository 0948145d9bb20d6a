//! The header of the `.npy` format: magic, version, length, and a Python dictionary; the elements follow.

/// The first bytes of every `.npy` file.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// What `numpy.save` says about an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The element type in NumPy's words, for instance `<f4`; of a structured array, the text of its list.
    pub descr: String,
    /// Column-major order.
    pub fortran: bool,
    /// The sizes.
    pub shape: Vec<usize>,
    /// Where the elements start, in bytes.
    pub start: usize,
}

impl Header {
    /// The byte order, the letter of the type, and the bytes per element, as far as they can be told.
    pub fn element(&self) -> (char, char, Option<usize>) {
        let mut letters = self.descr.chars();
        let (order, kind) = (letters.next().unwrap_or(' '), letters.next().unwrap_or(' '));
        (order, kind, letters.as_str().parse().ok().filter(|w| (1..=16).contains(w)))
    }

    /// Bytes of all elements; nothing when they are beyond any memory.
    pub fn bytes(&self, width: usize) -> Option<usize> {
        self.shape.iter().try_fold(width, |a, s| a.checked_mul(*s))
    }
}

/// Reads the header off the beginning of a file.
pub fn parse(bytes: &[u8]) -> Result<Header, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("not an npy file")?;
    let wide = rest.first().is_some_and(|version| *version > 1);
    let (head, rest) = rest.get(2..).and_then(|r| r.split_at_checked(if wide { 4 } else { 2 })).ok_or("truncated")?;
    let len = head.iter().rev().fold(0usize, |v, b| v << 8 | usize::from(*b));
    let (header, content) = rest.split_at_checked(len).ok_or("truncated in its header")?;
    let text = String::from_utf8_lossy(header);
    let after = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, v)| v.trim_start());
    let field = |key: &str| after(key).ok_or_else(|| format!("its header has no `{key}`"));
    let descr = match field("descr")? {
        list if list.starts_with('[') => list.split_inclusive(']').next().unwrap_or(list),
        name => name.trim_start_matches('\'').split('\'').next().unwrap_or_default(),
    };
    let fortran = !field("fortran_order")?.starts_with("False");
    let shape = field("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).ok_or("its header has no shape")?.0;
    let sizes = shape.split(',').map(str::trim).filter(|s| !s.is_empty());
    let shape =
        sizes.map(|s| s.parse::<usize>().map_err(|_| format!("a size of `{s}`"))).collect::<Result<Vec<_>, _>>()?;
    Ok(Header { descr: descr.into(), fortran, shape, start: bytes.len() - content.len() })
}

/// The header of an array, version 1.0, padded to 64 bytes as NumPy does. `descr` is quoted or a list, as Python
/// writes it.
pub fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if sizes.len() == 1 { "," } else { "" };
    let dict = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ({}{comma}), }}", sizes.join(", "));
    let len = (10 + dict.len() + 1).next_multiple_of(64) - 10;
    let mut header = [MAGIC, b"\x01\x00"].concat();
    header.extend((len as u16).to_le_bytes());
    header.extend(format!("{dict:<width$}\n", width = len - 1).into_bytes());
    header
}
