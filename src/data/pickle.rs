//! The little of Python's pickle that the CIFAR archives use (protocol 2, written by Python 2): dictionaries, lists,
//! strings, integers, and arrays of bytes.
//!
//! A pickle is a program, and its `GLOBAL` can name any function of Python. Here it may name the three constructors of
//! a numpy array and nothing else, and those are not called but understood.

use std::collections::HashMap;

/// What a pickle holds. Strings are slices of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// None.
    Nothing,
    /// True or False.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A string, of bytes or of characters.
    Bytes(&'a [u8]),
    /// A list or a tuple.
    List(Vec<Value<'a>>),
    /// A dictionary.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// A numpy array of u8, in row-major order.
    Array(Vec<usize>, &'a [u8]),
    /// numpy's `_reconstruct`, `ndarray` or `dtype`.
    Global(&'a str),
    /// The type u8.
    ByteType,
    /// Where a list begins.
    Mark,
    /// A container that was remembered. It may have grown since, so nothing may ask for it again.
    Remembered,
}

impl<'a> Value<'a> {
    /// The entry of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        let Value::Dict(entries) = self else { return None };
        entries.iter().find(|(k, _)| *k == Value::Bytes(key.as_bytes())).map(|(_, v)| v)
    }
}

/// Read a pickle, or say what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Value<'_>, String> {
    let mut machine = Machine { rest: bytes, len: bytes.len(), stack: Vec::new(), memo: HashMap::new() };
    while machine.step()? {}
    match machine.stack.pop() {
        Some(value) if machine.stack.is_empty() => Ok(value),
        _ => Err("the pickle ends with something left over".into()),
    }
}

struct Machine<'a> {
    rest: &'a [u8],
    len: usize,
    stack: Vec<Value<'a>>,
    memo: HashMap<u32, Value<'a>>,
}

impl<'a> Machine<'a> {
    /// One instruction; false after the last.
    fn step(&mut self) -> Result<bool, String> {
        let at = self.len - self.rest.len();
        let op = self.take(1)?[0];
        let value = match op {
            b'.' => return Ok(false),
            0x80 => match self.take(1)?[0] {
                0..=2 => return Ok(true),
                version => return Err(format!("pickle protocol {version}, and only 2 is read")),
            },
            b'(' => Value::Mark,
            b'}' => Value::Dict(Vec::new()),
            b']' | b')' => Value::List(Vec::new()),
            b'N' => Value::Nothing,
            0x88 | 0x89 => Value::Bool(op == 0x88),
            b'K' => Value::Int(i64::from(self.take(1)?[0])),
            b'M' => Value::Int(i64::from(self.word(2)?)),
            b'J' => Value::Int(i64::from(self.word(4)? as i32)),
            b'U' => self.string(1)?,
            b'T' | b'X' => self.string(4)?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'q' => return self.remember(1),
            b'r' => return self.remember(4),
            b't' => Value::List(self.since_mark()?),
            0x85..=0x87 => {
                let from =
                    self.stack.len().checked_sub(usize::from(op - 0x84)).ok_or("the pickle's stack runs empty")?;
                Value::List(self.stack.split_off(from))
            }
            b'a' => {
                let item = self.pop()?;
                return self.append(vec![item]);
            }
            b'e' => {
                let items = self.since_mark()?;
                return self.append(items);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.insert(vec![key, value]);
            }
            b'u' => {
                let items = self.since_mark()?;
                return self.insert(items);
            }
            b'c' => self.global()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => return Err(format!("pickle instruction {op:#04x} at byte {at}, which no CIFAR file has")),
        };
        self.stack.push(value);
        Ok(true)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or("the pickle is truncated")?;
        self.rest = rest;
        Ok(head)
    }

    fn word(&mut self, bytes: usize) -> Result<u32, String> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b)))
    }

    fn string(&mut self, width: usize) -> Result<Value<'a>, String> {
        let n = self.word(width)? as usize;
        Ok(Value::Bytes(self.take(n)?))
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        self.stack.pop().ok_or_else(|| "the pickle's stack runs empty".into())
    }

    fn since_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let at =
            self.stack.iter().rposition(|v| *v == Value::Mark).ok_or("the pickle closes a list it never opened")?;
        let items = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(items)
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Result<bool, String> {
        let Some(Value::List(list)) = self.stack.last_mut() else { return Err("the pickle appends to no list".into()) };
        list.extend(items);
        Ok(true)
    }

    fn insert(&mut self, items: Vec<Value<'a>>) -> Result<bool, String> {
        let Some(Value::Dict(dict)) = self.stack.last_mut() else {
            return Err("the pickle inserts into no dictionary".into());
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            dict.push((key, value));
        }
        Ok(true)
    }

    fn remember(&mut self, width: usize) -> Result<bool, String> {
        let slot = self.word(width)?;
        let value = match self.stack.last().ok_or("the pickle's stack runs empty")? {
            Value::List(_) | Value::Dict(_) | Value::Array(..) => Value::Remembered,
            value => value.clone(),
        };
        self.memo.insert(slot, value);
        Ok(true)
    }

    fn recall(&mut self, width: usize) -> Result<Value<'a>, String> {
        let slot = self.word(width)?;
        match self.memo.get(&slot) {
            Some(Value::Remembered) | None => Err(format!("the pickle uses its object {slot} twice")),
            Some(value) => Ok(value.clone()),
        }
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|b| *b == b'\n').ok_or("the pickle is truncated")?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| "the pickle names something unreadable".into())
    }

    fn global(&mut self) -> Result<Value<'a>, String> {
        let (module, name) = (self.line()?, self.line()?);
        match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") | ("numpy", "ndarray" | "dtype") => {
                Ok(Value::Global(name))
            }
            _ => Err(format!(
                "the pickle asks for `{module}.{name}`: such a file can run any program when Python opens it, and here \
                 only the constructors of a numpy array are accepted; do not trust this file"
            )),
        }
    }

    fn reduce(&mut self) -> Result<Value<'a>, String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::List(arguments) = arguments else { return Err("the pickle calls without arguments".into()) };
        match (function, arguments.first()) {
            (Value::Global("_reconstruct"), Some(Value::Global("ndarray"))) => Ok(Value::Array(Vec::new(), &[])),
            (Value::Global("dtype"), Some(Value::Bytes(b"u1"))) => Ok(Value::ByteType),
            (Value::Global("dtype"), Some(Value::Bytes(other))) => {
                Err(format!("an array of type {}, wanted u1", String::from_utf8_lossy(other)))
            }
            _ => Err("the pickle calls something other than an array's constructor".into()),
        }
    }

    /// The state of an array is (version, shape, type, column-major, bytes); that of the type says nothing new.
    fn build(&mut self) -> Result<Value<'a>, String> {
        let (state, object) = (self.pop()?, self.pop()?);
        match (object, state) {
            (Value::ByteType, _) => Ok(Value::ByteType),
            (Value::Array(..), Value::List(state)) => match state.as_slice() {
                [_, Value::List(shape), Value::ByteType, Value::Bool(false), Value::Bytes(bytes)] => {
                    let size = |v: &Value| if let Value::Int(i) = v { usize::try_from(*i).ok() } else { None };
                    let shape: Vec<usize> = shape.iter().map_while(size).collect();
                    let wanted = shape.iter().try_fold(1usize, |a, s| a.checked_mul(*s));
                    if wanted != Some(bytes.len()) {
                        return Err(format!("an array of shape {shape:?} with {} bytes", bytes.len()));
                    }
                    Ok(Value::Array(shape, bytes))
                }
                _ => Err("an array that is not made of bytes in row-major order".into()),
            },
            _ => Err("the pickle builds something other than an array".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_array_constructors_is_accepted() {
        for (bytes, words) in [
            (&b"cposix\nsystem\n(U\x04exitt\x85R."[..], "`posix.system`"),
            (b"cnumpy\nload\n.", "`numpy.load`"),
            (b"c__builtin__\neval\n.", "`__builtin__.eval`"),
            (b"cnumpy\nndarray\n(K\x01tR.", "something other than an array's constructor"),
            (b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR.", "type f4, wanted u1"),
            (b"\x80\x04.", "protocol 4"),
            (b"i__main__\nevil\n.", "instruction 0x69 at byte 0"),
            (b"(K\x01", "truncated"),
            (b"U\xff12.", "truncated"),
            (b"cnumpy", "truncated"),
            (b"t.", "never opened"),
            (b"K\x01a.", "appends to no list"),
            (b"R.", "stack runs empty"),
            (b"\x87.", "stack runs empty"),
            (b"h\x05.", "its object 5 twice"),
            (b"]q\x00h\x00.", "its object 0 twice"),
            (b"K\x01K\x02.", "left over"),
        ] {
            let message = parse(bytes).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn lists_and_dictionaries_nest() {
        let value = parse(b"\x80\x02}q\x00(U\x01aq\x01]q\x02(K\x07M\x00\x01J\xff\xff\xff\xffeU\x01bh\x01u.").unwrap();
        let list = Value::List(vec![Value::Int(7), Value::Int(256), Value::Int(-1)]);
        assert_eq!(value.get("a"), Some(&list));
        assert_eq!(value.get("b"), Some(&Value::Bytes(b"a")));
        assert_eq!(value.get("c"), None);
    }

    #[test]
    fn no_bytes_are_too_random() {
        // Every prefix of a real pickle, and every byte of it changed, is read or refused, never a panic.
        let good = b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\
            \x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x01K\x02\x86q\x08cnumpy\ndtype\nq\x09U\x02u1q\nK\x00K\x01\x87q\x0bR\
            q\x0c(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02xytbu.";
        assert_eq!(parse(good).unwrap().get("data"), Some(&Value::Array(vec![1, 2], b"xy")));
        for i in 0..good.len() {
            assert!(parse(&good[..i]).is_err());
            for change in [1, 0x20, 0x80, 0xff] {
                let mut bad = good.to_vec();
                bad[i] ^= change;
                parse(&bad).ok();
            }
        }
    }
}
