//! Comma-separated values as RFC 4180 describes them, in and out.

/// A record of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The line it starts on, counted from 1.
    pub line: usize,
    /// Its cells, without quotes.
    pub cells: Vec<String>,
}

/// The records of a text. Lines may end with CR LF, a byte-order mark is skipped, empty lines are no records. The
/// message names the line of a quote that is out of place.
pub fn parse(text: &str) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    let mut chars = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    let mut line = 1;
    while chars.peek().is_some() {
        let start = line;
        let (mut cells, mut cell, mut quoted) = (Vec::new(), String::new(), false);
        loop {
            match chars.next() {
                Some('"') if cell.is_empty() && !quoted => {
                    quoted = true;
                    loop {
                        match chars.next() {
                            Some('"') if chars.next_if_eq(&'"').is_none() => break,
                            Some(c) => {
                                line += usize::from(c == '\n');
                                cell.push(c);
                            }
                            None => return Err(format!("line {start}: a quote is not closed")),
                        }
                    }
                }
                Some(',') => {
                    cells.push(std::mem::take(&mut cell));
                    quoted = false;
                }
                Some('\r') if chars.peek() == Some(&'\n') => {}
                Some('\n') | None => break,
                Some(c) if quoted || c == '"' => {
                    return Err(format!("line {line}: `{c}` is out of place; double a quote inside a quoted cell"));
                }
                Some(c) => cell.push(c),
            }
        }
        line += 1;
        if !(cells.is_empty() && cell.is_empty() && !quoted) {
            cells.push(cell);
            records.push(Record { line: start, cells });
        }
    }
    Ok(records)
}

/// One record with its line end; cells are quoted where they must be.
pub fn line<T: AsRef<str>>(cells: &[T]) -> String {
    let cell = |c: &T| match c.as_ref() {
        c if c.contains([',', '"', '\n', '\r']) => format!("\"{}\"", c.replace('"', "\"\"")),
        c => c.to_string(),
    };
    cells.iter().map(cell).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let rows = [vec!["id", "a, b", "say \"x\""], vec!["", "two\nlines\r\n", "é"], vec!["", ""]];
        let text: String = rows.iter().map(|r| line(r)).collect();
        let back = parse(&text).unwrap();
        assert_eq!(back.iter().map(|r| r.cells.iter().map(String::as_str).collect()).collect::<Vec<Vec<_>>>(), rows);
        assert_eq!(back.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 2, 5]);
    }

    #[test]
    fn what_spreadsheets_write() {
        let back = parse("\u{feff}id,label\r\n\r\n7,\"cat\"\r\n8,").unwrap();
        assert_eq!(back.len(), 3);
        assert_eq!((back[1].line, &back[1].cells[..]), (3, &["7".to_string(), "cat".into()][..]));
        assert_eq!(back[2].cells, ["8", ""]);
        assert!(parse("").unwrap().is_empty());
        assert_eq!(parse("\"\"\n").unwrap()[0].cells, [""]);
        assert!(parse("a\n\"b").unwrap_err().contains("line 2: a quote is not closed"));
        assert!(parse("a\nb\"c").unwrap_err().contains("line 2"));
        assert!(parse("\"b\"c").unwrap_err().contains("line 1"));
    }
}
